"""What a spiking network is: the reference semantics. Imports torch only."""
