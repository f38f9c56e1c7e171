"""What the product costs, as ratios to a bare Twisted protocol measured in the same run."""
