"""Who asks, what he may see, and how much anybody may send."""
