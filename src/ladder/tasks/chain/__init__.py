"""The built-in world "chain": addition modulo 10 in labelled steps, worked in two notations or answered directly.

    9 a -2 b +1 c +2 =                                  the problem: start at 9, apply steps a, b, c
    # 0                                                 a direct answer
    a 9 -2 7 b 七 加一 八 c 8 +2 0 # 0                   a worked answer in mixed notation

`words.py` defines the vocabulary, `answers.py` judges answers, `gold.py` defines the gold reward of the preference
experiments, `source.py` generates problems, `web.py` generates the pretraining corpus.
"""
