"""The stages of a run; each module defines `run(Inputs, Context) -> StageResult`."""
