"""Chat templates that try to escape the sandbox.

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
"""Each template must fail or have no effect. PATH is a file that must not be created."""
