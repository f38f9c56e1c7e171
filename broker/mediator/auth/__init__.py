"""Who a connection is: logins, passwords, tokens, and the accounts behind them."""
