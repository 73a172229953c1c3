"""Ways in and out: problems from other formats, and other libraries' trainers and environments."""
