"""The stages, in the order of the data flow; each is `run(sections, inputs, context) -> StageResult`."""
