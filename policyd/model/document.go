package model

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// APIVersion is the one version of the documents there is.
const APIVersion = "testudo/v1"

// Kind names what a document describes.
type Kind string

const (
	KindNode           Kind = "Node"
	KindFilterList     Kind = "FilterList"
	KindFilterAction   Kind = "FilterAction"
	KindAuthentication Kind = "Authentication"
	KindPolicy         Kind = "Policy"
	KindAssignment     Kind = "Assignment"
)

// Kinds lists every kind, in the order in which one refers to another.
var Kinds = []Kind{KindNode, KindFilterList, KindFilterAction, KindAuthentication, KindPolicy, KindAssignment}

// Meta is what every document has.
type Meta struct {
	Name   string
	Labels map[string]string
	Pos    Pos // of the document
}

// Document is one YAML document: its text, and what the text means.
type Document struct {
	Kind Kind
	Name string
	Pos  Pos
	Text []byte // complete: apiVersion is in it even if the file gave it once
	Spec any    // *Node, *FilterList, *FilterAction, *Authentication, *Policy or *Assignment
	bad  bool   // mistakes were reported; only the name may be used
}

// MaxFile bounds one policy file, in octets.
const MaxFile = 8 << 20

// Parse reads the documents of one file. It returns what it could read along
// with the mistakes (as Errors), so that a caller can look for more of them.
func Parse(file string, data []byte) ([]Document, error) {
	var errs Errors
	if len(data) > MaxFile {
		errs.Add(Pos{file, 0}, "", "the file has %d octets, want at most %d; split it", len(data), MaxFile)
		return nil, errs
	}
	var docs []Document
	version := ""
	for _, c := range split(data) {
		src := &source{file: file, offset: c.line, errs: &errs}
		if d, ok := parseOne(src, c.text, &version); ok {
			docs = append(docs, d)
		}
	}
	return docs, errs.Err()
}

// chunk is the text of one document and the number of lines before it.
type chunk struct {
	text []byte
	line int
}

// split cuts a file at its "---" lines, which YAML allows nowhere inside a
// document (YAML 1.2.2 §9.1.2). One broken document then does not hide the
// mistakes of the others.
func split(data []byte) []chunk {
	var out []chunk
	start, line, first := 0, 0, 0
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if bytes.Equal(bytes.TrimRight(data[at:end], " \t\r\n"), []byte("---")) {
			out = append(out, chunk{data[start:at], first})
			start, first = end, line+1
		}
		at = end
	}
	return append(out, chunk{data[start:], first})
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

func parseOne(src *source, text []byte, version *string) (Document, bool) {
	before := len(*src.errs)
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	err := dec.Decode(&root)
	if errors.Is(err, io.EOF) {
		return Document{}, false // only comments
	}
	if err == nil {
		var more yaml.Node
		if e := dec.Decode(&more); e == nil {
			src.errs.Add(Pos{src.file, more.Line + src.offset}, "", "a second document starts here, want a line with --- alone before it")
			return Document{}, false
		} else if !errors.Is(e, io.EOF) {
			err = e
		}
	}
	if err != nil {
		msg, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
			msg = err.Error()[len(m[0]):]
		}
		src.errs.Add(Pos{src.file, line + src.offset}, "", "this is not YAML: %s", msg)
		return Document{}, false
	}
	if len(root.Content) != 1 {
		return Document{}, false
	}
	v := value{root.Content[0], "", src}
	if v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!null" {
		return Document{}, false
	}
	if v.node.Anchor != "" || v.node.Kind == yaml.AliasNode {
		v.fail("got a YAML anchor or alias, want the document written out")
		return Document{}, false
	}
	return decodeDocument(v, text, version, before)
}

func decodeDocument(v value, text []byte, version *string, before int) (Document, bool) {
	var kind Kind
	var meta Meta
	var spec *value
	inherited := true
	v.mapping(
		key{"apiVersion", false, func(v value) {
			inherited = false
			if got := v.text("the version " + APIVersion); got != APIVersion {
				if got != "" {
					v.want("the version %s", APIVersion)
				}
				return
			}
			*version = APIVersion
		}},
		key{"kind", true, func(v value) { kind = readKind(v) }},
		key{"metadata", true, func(v value) { meta = readMeta(v) }},
		key{"spec", true, func(v value) { spec = &v }},
	)
	if inherited && *version == "" && v.node.Kind == yaml.MappingNode {
		v.fail("the key \"apiVersion\" is missing, want apiVersion: %s in the first document of a file", APIVersion)
		*version = APIVersion // said once
	}
	if kind == "" || spec == nil {
		return Document{}, false
	}
	meta.Pos = v.pos()
	d := Document{Kind: kind, Name: meta.Name, Pos: meta.Pos, Text: bytes.TrimSpace(text)}
	if inherited {
		d.Text = slices.Concat([]byte("apiVersion: "+APIVersion+"\n"), d.Text)
	}
	d.Text = append(d.Text[:len(d.Text):len(d.Text)], '\n')
	switch kind {
	case KindNode:
		d.Spec = readNode(*spec, meta)
	case KindFilterList:
		d.Spec = readFilterList(*spec, meta)
	case KindFilterAction:
		d.Spec = readFilterAction(*spec, meta)
	case KindAuthentication:
		d.Spec = readAuthentication(*spec, meta)
	case KindPolicy:
		d.Spec = readPolicy(*spec, meta)
	case KindAssignment:
		d.Spec = readAssignment(*spec, meta)
	}
	d.bad = len(*v.in.errs) > before
	return d, d.Name != ""
}

func readKind(v value) Kind {
	known := make([]string, len(Kinds))
	for i, k := range Kinds {
		known[i] = string(k)
	}
	s := v.text("one of " + strings.Join(known, ", "))
	if s == "" || slices.Contains(known, s) {
		return Kind(s)
	}
	v.fail("got %s, want one of %s%s", v.got(), strings.Join(known, ", "), suggest(s, known))
	return ""
}

func readMeta(v value) (m Meta) {
	v.mapping(
		key{"name", true, func(v value) { m.Name = readName(v) }},
		key{"labels", false, func(v value) { m.Labels = readLabels(v) }},
	)
	return m
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// reservedNames mean something where a name is written.
var reservedNames = []string{"any", "me", "none"}

func readName(v value) string {
	s := v.text("a name")
	switch {
	case s == "":
		return ""
	case slices.Contains(reservedNames, s):
		v.fail("the name %s is reserved, want another one", quote(s))
		return ""
	case !nameForm.MatchString(s):
		v.want("a name of small letters, digits, '-' and '.', at most 253 long")
		return ""
	}
	if _, err := netip.ParseAddr(s); err == nil {
		v.fail("got %s, want a name that does not read as an address", quote(s))
		return ""
	}
	return s
}

func readLabels(v value) map[string]string {
	if v.node.Kind != yaml.MappingNode || len(v.node.Content) == 0 {
		v.want("a mapping of label to value, such as {tier: web}")
		return nil
	}
	out := map[string]string{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k := value{v.node.Content[i], v.path, v.in}
		name := k.text("a label")
		c := v.child(name, v.node.Content[i+1])
		if _, twice := out[name]; twice {
			c.fail("the label is given twice; keep one")
		}
		out[name] = c.text("a label's value")
	}
	return out
}

// Read parses and links the policy files named: files, and the *.yaml and
// *.yml files of directories (not of directories in them). The error holds
// every mistake of all of them.
func Read(paths ...string) (*Set, []Document, error) {
	var docs []Document
	var parse []error
	for _, p := range paths {
		files, err := policyFiles(p)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, nil, fmt.Errorf("read policy: %w", err)
			}
			d, err := Parse(f, data)
			docs = append(docs, d...)
			parse = append(parse, err)
		}
	}
	set, err := Load(docs)
	if err := Join(append(parse, err)...); err != nil {
		return nil, nil, err
	}
	return set, docs, nil
}

func policyFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read policy: %s holds no *.yaml or *.yml file", path)
	}
	return out, nil
}
