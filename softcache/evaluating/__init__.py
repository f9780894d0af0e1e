"""What a network says of a split's rows, how good that is, and what the network costs."""
