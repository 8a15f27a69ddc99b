package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

func validOutput(o string) error {
	switch o {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output: got %q, want table, json or yaml", o)
}

// print writes v as JSON or YAML, or calls table.
func (c *cli) print(w io.Writer, v any, rows func(*table)) error {
	if c.output == "table" {
		t := &table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
		rows(t)
		return t.Flush()
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if c.output == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// table aligns cells in columns.
type table struct{ *tabwriter.Writer }

func (t *table) row(cells ...any) {
	s := make([]string, len(cells))
	for i, c := range cells {
		if s[i] = fmt.Sprint(c); s[i] == "" {
			s[i] = "-"
		}
	}
	fmt.Fprintln(t, strings.Join(s, "\t"))
}

func (t *table) line(format string, args ...any) {
	_ = t.Flush()
	fmt.Fprintf(t, format+"\n", args...)
	_ = t.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return time.Since(t.AsTime()).Round(time.Second).String()
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

// bits prints a rate in bits per second.
func bits(bps float64) string {
	for _, u := range []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"} {
		if bps < 1000 || u == "Gbit/s" {
			return fmt.Sprintf("%.3g %s", bps, u)
		}
		bps /= 1000
	}
	return ""
}
