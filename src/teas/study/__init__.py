"""What we learn from a network: data, metrics, energy, experiments, pictures, and the report."""
