"""Where events come from, and what is kept, checked and repaired around it."""
