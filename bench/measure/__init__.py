"""Measures offshoot beside the programs it is compared with. Standard library only."""
