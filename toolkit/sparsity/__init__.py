"""Pruning: the schedule, the sparsity mask and the back ends that select the weights to prune."""
