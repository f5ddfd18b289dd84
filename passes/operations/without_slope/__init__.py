"""Operations that can have no rule: shapes, masks, places, random numbers, and what cuts the gradient."""
