"""How a network meets files and other tools."""
