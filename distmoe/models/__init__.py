"""Models: encoder, heads, and their construction from a configuration."""
