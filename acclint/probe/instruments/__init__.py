"""What measures a running script, inside its process: torch's calls and hooks, and what they tell about each update."""
