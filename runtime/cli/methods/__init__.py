"""The methods there are: what their own files say of them, and what they take, measured."""
