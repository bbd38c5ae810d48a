"""OpenVINO IR: made, opened up, checked."""
