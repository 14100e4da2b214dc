"""Where a network comes from: the architectures of the paper."""
