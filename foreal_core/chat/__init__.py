"""What every front end shares: messages, tools, replies, shared pairs, bills. No framework."""
