"""Cost estimates for `pruneofa plan`: steps, memory, time and disk of stages that have not run."""
