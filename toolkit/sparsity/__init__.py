"""What is zero and stays zero: schedule, mask, and the back ends that choose the weights."""
