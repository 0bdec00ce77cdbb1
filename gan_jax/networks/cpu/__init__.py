"""What only a CPU needs: convolutions in forms that XLA runs fast there."""
