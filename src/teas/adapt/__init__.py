"""How a network's time adapts: activity, allocation, objective, training."""
