module github.com/testudo-ipsec/testudo/services

go 1.26.0

require (
	github.com/testudo-ipsec/testudo/dataplane v0.0.0
	github.com/testudo-ipsec/testudo/ipsec v0.0.0
	github.com/testudo-ipsec/testudo/keymgr v0.0.0
	github.com/testudo-ipsec/testudo/policyd v0.0.0
	github.com/testudo-ipsec/testudo/proto v0.0.0
)

require (
	github.com/fatih/structs v1.1.0 // indirect
	github.com/fsnotify/fsnotify v1.9.0 // indirect
	github.com/go-viper/mapstructure/v2 v2.5.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/knadh/koanf/maps v0.1.2 // indirect
	github.com/knadh/koanf/parsers/yaml v1.1.1 // indirect
	github.com/knadh/koanf/providers/file v1.2.1 // indirect
	github.com/knadh/koanf/providers/posflag v1.0.2 // indirect
	github.com/knadh/koanf/providers/structs v1.0.0 // indirect
	github.com/knadh/koanf/v2 v2.4.1 // indirect
	github.com/mitchellh/copystructure v1.2.0 // indirect
	github.com/mitchellh/reflectwalk v1.0.2 // indirect
	github.com/prometheus/client_golang v1.25.0 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.1.0 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	sigs.k8s.io/yaml v1.6.0 // indirect
)

replace (
	github.com/testudo-ipsec/testudo/dataplane => ../dataplane
	github.com/testudo-ipsec/testudo/ipsec => ../ipsec
	github.com/testudo-ipsec/testudo/keymgr => ../keymgr
	github.com/testudo-ipsec/testudo/policyd => ../policyd
	github.com/testudo-ipsec/testudo/proto => ../proto
)
