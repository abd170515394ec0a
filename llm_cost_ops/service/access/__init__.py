"""Who may call, and whose records they see and write."""
