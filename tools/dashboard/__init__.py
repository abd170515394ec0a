"""What the dashboard needs around it: the assets of others, example data, and screenshots."""
