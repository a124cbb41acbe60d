"""A name becomes layers that compute: found, converted, checked, loaded; tokenizer and chat template beside them."""
