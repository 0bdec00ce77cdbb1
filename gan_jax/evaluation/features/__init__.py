"""The networks whose features the distances compare, and the weights behind them."""
