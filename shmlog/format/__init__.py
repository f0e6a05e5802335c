"""Format: numbers and bytes, without input or output."""
