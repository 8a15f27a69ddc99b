// Package config reads a daemon's configuration: built-in defaults, then one
// YAML file, then TESTUDO_<DAEMON>_* environment variables, then flags. A key
// that the configuration does not know is an error, wherever it stands.
//
// A configuration is a struct whose fields carry two tags: koanf, the key, and
// help, the sentence that --help prints. Every key is also a flag: the key
// policyd.address is --policyd.address and TESTUDO_WORKERD_POLICYD_ADDRESS.
package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Bind adds --config and a flag for every key of c, a pointer to a struct that
// holds the defaults.
func Bind(fs *pflag.FlagSet, c any) {
	fs.StringP("config", "c", "", "YAML configuration file")
	walk(reflect.ValueOf(c).Elem(), "", func(key, help string, v reflect.Value) {
		switch x := v.Interface().(type) {
		case string:
			fs.String(key, x, help)
		case bool:
			fs.Bool(key, x, help)
		case int:
			fs.Int(key, x, help)
		case time.Duration:
			fs.Duration(key, x, help)
		case []string:
			fs.StringSlice(key, x, help)
		default:
			panic(fmt.Sprintf("config: key %s has type %s, which no flag can hold", key, v.Type()))
		}
	})
}

// Load fills c in the order given in the package comment. daemon is the name
// in the environment variables, such as "workerd".
func Load(daemon string, fs *pflag.FlagSet, c any) error {
	k := koanf.New(".")
	if err := k.Load(structs.Provider(c, "koanf"), nil); err != nil {
		return fmt.Errorf("defaults: %w", err)
	}
	path, _ := fs.GetString("config")
	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return fmt.Errorf("config file %s: %w", path, err)
		}
	}
	if err := loadEnv(k, daemon, c); err != nil {
		return err
	}
	if err := k.Load(posflag.ProviderWithFlag(fs, ".", k, func(f *pflag.Flag) (string, any) {
		if !f.Changed || !known(c, f.Name) {
			return "", nil
		}
		return f.Name, posflag.FlagVal(fs, f)
	}), nil); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	err := k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result:           c,
		ErrorUnused:      true,
		WeaklyTypedInput: true,
		TagName:          "koanf",
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			durationWithUnit,
			mapstructure.StringToSliceHookFunc(",")),
	}})
	if err != nil {
		return fmt.Errorf("%s: %w; known keys: %s", orDefault(path, "configuration"), err, strings.Join(keys(c), " "))
	}
	return nil
}

// durationWithUnit reads durations. A bare number is refused: it would be taken
// for nanoseconds, which nobody means.
func durationWithUnit(from, to reflect.Type, v any) (any, error) {
	if to != reflect.TypeFor[time.Duration]() || from == to {
		return v, nil
	}
	s, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("got %v, want a duration with its unit, such as 30s or 24h", v)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("got %q, want a duration with its unit, such as 30s or 24h", s)
	}
	return d, nil
}

// loadEnv takes TESTUDO_<DAEMON>_KEY variables; one that names no key is an error.
func loadEnv(k *koanf.Koanf, daemon string, c any) error {
	prefix := "TESTUDO_" + strings.ToUpper(daemon) + "_"
	byVar := map[string]string{}
	for _, key := range keys(c) {
		byVar[prefix+strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))] = key
	}
	var errs []error
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		key, ok := byVar[name]
		if !ok {
			errs = append(errs, fmt.Errorf("environment variable %s names no key of %s", name, daemon))
			continue
		}
		if err := k.Set(key, value); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func keys(c any) []string {
	var out []string
	walk(reflect.ValueOf(c).Elem(), "", func(key, _ string, _ reflect.Value) { out = append(out, key) })
	sort.Strings(out)
	return out
}

func known(c any, name string) bool {
	for _, k := range keys(c) {
		if k == name {
			return true
		}
	}
	return false
}

func walk(v reflect.Value, prefix string, leaf func(key, help string, v reflect.Value)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := prefix + f.Tag.Get("koanf")
		if f.Type.Kind() == reflect.Struct {
			walk(v.Field(i), key+".", leaf)
			continue
		}
		leaf(key, f.Tag.Get("help"), v.Field(i))
	}
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}
