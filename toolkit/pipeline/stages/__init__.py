"""The stages, in the order of the data flow; each is `run(Inputs, Context) -> StageResult`."""
