"""What a survey says about fields of a recipe: findings, and the values that are proposed."""
