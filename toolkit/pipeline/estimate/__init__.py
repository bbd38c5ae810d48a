"""What `pruneofa plan` shows: steps, memory, time and disk of stages that have not run."""
