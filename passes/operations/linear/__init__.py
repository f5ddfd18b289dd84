"""Operations that need no rule: the gradient of what is linear is its multiplier."""
