"""What a person sees while a study runs, and at its end."""
