"""`stratakv bench`: how fast decode is over context, batch, index and caps of the tiers, beside others in the same run.

options      what is asked for                    bandwidths   measured, of every edge
shapes       models of random weights             subject      the model that is measured, and its tokens
correctness  logits first, speeds afterwards      random_kv    contexts that nobody prefilled
contestant   a turn, a step, and their times      ours, transformers_side, llama_side   who is timed
slow_links   a store's links held to a speed
run          rows of context and batch            report, plot   for people
"""
