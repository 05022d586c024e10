"""The process around the cores: node, commit path, recovery."""
