"""A course of one chapter with one exercise; the fixture `course` builds it."""

SOURCE = """---
modules: [runtime]
needs: []
---

# 01 · Sample

Some text.

```python
x = 1
```

### Exercise: a device

```python exercise="utils.runtime.device" difficulty=2 importance=3 minutes=5
```

More text.

```python
print(x)
```

```python rtol=0.1 why="an example"
print(x / 3)
```
"""


def cell(notebook, id):
    return next(c for c in notebook.cells if c.id == id)
