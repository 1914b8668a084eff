"""Chat templates that try to escape the sandbox or use too much time or memory.

Cases are added to this corpus and never removed.
"""

from typing import Final

ESCAPES: Final = {
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "attr filter, spelt by escapes": r"{{ ''|attr('\x5f\x5fclass\x5f\x5f') }}",
    "item": "{{ ''['__class__'] }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "groupby": "{{ ['']|groupby('__class__') }}",
    "sort attribute": "{{ ['', '']|sort(attribute='__class__.__name__') }}",
    "format string": "{{ '{0.__class__}'.format('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format by reference": "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "format filter on an attribute": "{{ '%s'|format(''.__class__) }}",
    "attr of format": "{{ (''|attr('format'))('{0.__class__}') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "closure": "{{ strftime_now.__closure__ }}",
    "code": "{{ strftime_now.__code__.co_consts }}",
    "builtins through cycler": "{{ cycler.__init__.__globals__.os.popen('touch PATH').read() }}",
    "builtins through joiner": "{{ joiner.__init__.__globals__['__builtins__']['open']('PATH', 'w') }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('touch PATH') }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "self init": "{{ self.__init__.__globals__ }}",
    "loop frame": "{% for x in (messages|map('upper')) %}{{ loop.__class__ }}{% endfor %}",
    "generator frame": "{{ (messages|map('string')).gi_frame.f_builtins }}",
    "undefined": "{{ nothing.__class__.__init__.__globals__ }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "caller": "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "mutation": "{{ messages.append({}) }}",
    "mutation by reference": "{% set f = messages.clear %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "extends an object": "{% extends messages %}",
}
"""Each must fail or have no effect; PATH is a file that must not be created."""

GREEDY_TEMPLATES: Final = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "power of variables": "{% set n = 9 %}{{ n ** (n ** n) }}",
    "repeat": "{{ 'x' * 10 ** 11 }}",
    "repeat a list": "{{ [0] * 10 ** 11 }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling a list": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "width": "{{ '%100000000000d' % 1 }}",
    "width by format": "{{ '{:100000000000d}'.format(1) }}",
    "center": "{{ 'x'|center(10 ** 11) }}",
    "indent": "{{ 'x\ny'|indent(10 ** 11) }}",
    "ljust": "{{ 'x'.ljust(10 ** 11) }}",
    "batch": "{{ [1]|batch(10 ** 11, 0)|list }}",
    "indented json": "{{ [1]|tojson(indent=10 ** 11) }}",
    "replace": "{{ ('x' * 10 ** 5).replace('x', 'y' * 10 ** 7) }}",
    "deep parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "much text": "{% for i in range(99999) %}{% for i in range(999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
}
"""Each must fail within the limits of time and memory."""
