"""The back ends that choose which weights stay."""
