"""Pictures made in a conversation: what was said, what it means (planner), and what is done about it (acting)."""
