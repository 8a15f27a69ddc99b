package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// value is one YAML node with the path that leads to it. Its readers report
// what they cannot read and return the zero value, so that reading goes on and
// finds the next mistake.
type value struct {
	node *yaml.Node
	path string
	in   *source
}

// source is where a document's values come from and where its mistakes go.
type source struct {
	file   string
	offset int // lines before the document
	errs   *Errors
}

func (v value) pos() Pos { return Pos{v.in.file, v.node.Line + v.in.offset} }

func (v value) fail(format string, args ...any) {
	v.in.errs.Add(v.pos(), v.path, format, args...)
}

func (v value) want(format string, args ...any) {
	v.fail("got %s, want %s", v.got(), fmt.Sprintf(format, args...))
}

// refuse names what is understood and not enforced.
func (v value) refuse(instead string) {
	v.fail("got %s, which is not enforced yet; %s", v.got(), instead)
}

func (v value) got() string {
	empty := len(v.node.Content) == 0
	switch v.node.Kind {
	case yaml.ScalarNode:
		if v.node.Tag == "!!null" {
			return "nothing"
		}
		return quote(v.node.Value)
	case yaml.SequenceNode:
		if empty {
			return "an empty list"
		}
		return "a list"
	case yaml.MappingNode:
		if empty {
			return "an empty mapping"
		}
		return "a mapping"
	case yaml.AliasNode:
		return "a YAML alias (write the value out instead)"
	}
	return "nothing"
}

// key is one field that a mapping may have.
type key struct {
	name     string
	required bool
	read     func(value)
}

func (v value) child(name string, n *yaml.Node) value {
	path := name
	if v.path != "" {
		path = v.path + "." + name
	}
	return value{n, path, v.in}
}

// mapping reads a mapping with exactly these keys.
func (v value) mapping(keys ...key) bool {
	known := make([]string, len(keys))
	for i, k := range keys {
		known[i] = k.name
	}
	if v.node.Kind != yaml.MappingNode {
		v.want("a mapping with the keys %s", strings.Join(known, ", "))
		return false
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		name, n := v.node.Content[i], v.node.Content[i+1]
		at := value{name, v.path, v.in}
		if name.Kind != yaml.ScalarNode {
			at.fail("a key is %s, want one of %s", at.got(), strings.Join(known, ", "))
			continue
		}
		at = v.child(name.Value, name)
		j := slices.Index(known, name.Value)
		switch {
		case seen[name.Value]:
			at.fail("the key is given twice; keep one")
		case j < 0:
			at.path = v.path
			at.fail("unknown key %s; known here: %s%s", quote(name.Value), strings.Join(known, ", "), suggest(name.Value, known))
		default:
			c := v.child(name.Value, n)
			if n.Kind == yaml.AliasNode || n.Anchor != "" {
				at.fail("got a YAML anchor or alias, want the value written out")
			} else {
				keys[j].read(c)
			}
		}
		seen[name.Value] = true
	}
	for _, k := range keys {
		if k.required && !seen[k.name] {
			v.fail("the key %q is missing", k.name)
		}
	}
	return true
}

// list reads a sequence; what says of which things.
func (v value) list(what string, read func(int, value)) {
	if v.node.Kind != yaml.SequenceNode {
		v.want("a list of %s", what)
		return
	}
	for i, n := range v.node.Content {
		item := value{n, fmt.Sprintf("%s[%d]", v.path, i), v.in}
		if n.Kind == yaml.AliasNode || n.Anchor != "" {
			item.fail("got a YAML anchor or alias, want the value written out")
			continue
		}
		read(i, item)
	}
}

func (v value) isString() bool {
	return v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!str" && v.node.Value != ""
}

// text reads a string; a number or a boolean has to be quoted.
func (v value) text(what string) string {
	if !v.isString() {
		if v.node.Kind == yaml.ScalarNode && (v.node.Tag == "!!int" || v.node.Tag == "!!float" || v.node.Tag == "!!bool" || v.node.Tag == "!!timestamp") {
			v.fail("got %s, want %s; put it in quotes", v.node.Value, what)
		} else {
			v.want("%s", what)
		}
		return ""
	}
	return v.node.Value
}

// scalar reads a string or a number as it was written.
func (v value) scalar(what string) (string, bool) {
	if v.node.Kind != yaml.ScalarNode || v.node.Tag != "!!str" && v.node.Tag != "!!int" || v.node.Value == "" {
		v.want("%s", what)
		return "", false
	}
	return v.node.Value, true
}

func (v value) boolean() bool {
	if v.node.Kind != yaml.ScalarNode || v.node.Tag != "!!bool" {
		v.want("true or false")
		return false
	}
	return strings.EqualFold(v.node.Value, "true")
}

func (v value) number(what string, low, high uint64) uint64 {
	if v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!int" {
		if n, err := strconv.ParseUint(v.node.Value, 10, 64); err == nil && n >= low && n <= high {
			return n
		}
	}
	v.want("%s from %d to %d", what, low, high)
	return 0
}

// duration reads 30s, 90m, 4h; low and high are inclusive.
func (v value) duration(low, high time.Duration) time.Duration {
	if s, ok := v.scalar("a duration such as 30s, 90m or 4h"); ok {
		d, err := time.ParseDuration(s)
		if err != nil || d < low || d > high {
			v.want("a duration such as 30s, 90m or 4h, from %s to %s", short(low), short(high))
			return 0
		}
		return d
	}
	return 0
}

// short is a duration without the zero units that time.Duration writes.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

var byteUnits = []struct {
	name string
	size uint64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50}}

// bytes reads an amount such as 64GiB, or a plain number of octets.
func (v value) bytes(low uint64) uint64 {
	const what = "an amount of data such as 512MiB, 64GiB or 1TiB"
	s, ok := v.scalar(what)
	if !ok {
		return 0
	}
	digits, size := s, uint64(1)
	for _, u := range byteUnits {
		if d, ok := strings.CutSuffix(s, u.name); ok {
			digits, size = d, u.size
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > maxBytes/size {
		v.want("%s, at most 4096PiB", what)
		return 0
	}
	if n*size < low {
		v.want("at least %d octets", low)
		return 0
	}
	return n * size
}

// maxBytes leaves room to double a limit.
const maxBytes = 1 << 62
