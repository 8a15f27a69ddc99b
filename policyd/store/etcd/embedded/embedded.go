// Package embedded runs one etcd member inside the process, for a policyd that
// has no etcd cluster. Nothing listens: the only way in is the client that
// Server.Client returns, which calls the member directly.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Config of a Server.
type Config struct {
	Dir    string       // where the data is; created when missing, mode 0700
	Logger *slog.Logger // etcd's warnings and errors; nil for none
}

// Server is a running member. Close stops it.
type Server struct {
	etcd   *embed.Etcd
	client *clientv3.Client
}

// retention is how long old revisions can be read.
const retention = "168h"

// quota bounds the data, so that a full disk is never etcd's doing.
const quota = 512 << 20

// Start runs a member and waits until it serves, or until ctx ends.
func Start(ctx context.Context, c Config) (*Server, error) {
	if c.Dir == "" {
		return nil, errors.New("embedded etcd: the data directory is not set")
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name = "policyd"
	cfg.Dir = c.Dir
	// A member needs a URL that names it, though it is never dialled or bound.
	self := url.URL{Scheme: "unix", Host: "policyd:0"}
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{self}, []url.URL{self}
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = quota
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newLogger(c.Logger))
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd in %s: %w", c.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-ctx.Done():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: not ready: %w", c.Dir, ctx.Err())
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", c.Dir, err)
	}
	return &Server{e, v3client.New(e.Server)}, nil
}

// Client is the client of the member. Close closes it too.
func (s *Server) Client() *clientv3.Client { return s.client }

// Err tells of a member that stopped by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the member; what was written is on disk.
func (s *Server) Close() error {
	err := s.client.Close()
	s.etcd.Close()
	select {
	case <-s.etcd.Server.StopNotify():
	case <-time.After(10 * time.Second):
		return errors.New("embedded etcd: did not stop within 10 s")
	}
	if errors.Is(err, context.Canceled) {
		err = nil // how a client without a connection says that it is closed
	}
	return err
}
