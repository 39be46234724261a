"""What a flow is: steps, their edges and scopes, and what is wrong with them. Standard library only; runs nothing."""
