package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/pki"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

// vaultMetrics exports the counters of the Vault client and of the cache before it.
type vaultMetrics struct {
	Client *vault.Vault
	Cache  *cred.Cache
	Mounts *vault.PKI
}

var (
	vaultRequests = prometheus.NewDesc("testudo_vault_requests_total", "Requests to Vault by what became of them; \"all\" counts every one.", []string{"result"}, nil)
	vaultLogins   = prometheus.NewDesc("testudo_vault_logins_total", "Logins to Vault.", []string{"result"}, nil)
	vaultBreaker  = prometheus.NewDesc("testudo_vault_breaker_open", "1 while Vault is not asked because it failed.", nil, nil)
	vaultExpires  = prometheus.NewDesc("testudo_vault_token_expires_seconds", "Unix time at which the token ends; 0 when it does not.", nil, nil)
	secretServes  = prometheus.NewDesc("testudo_secrets_served_total", "Secrets served: fresh, or stale because Vault was away.", []string{"state"}, nil)
	vaultIssued   = prometheus.NewDesc("testudo_vault_certificates_total", "Certificates that Vault signed for this key manager, and requests that failed.", []string{"result"}, nil)
	vaultHeld     = prometheus.NewDesc("testudo_vault_certificates", "Certificates from Vault in use: all, and those whose replacement fails.", []string{"state"}, nil)
	vaultNextEnd  = prometheus.NewDesc("testudo_vault_certificate_first_end_seconds", "Unix time at which the first of the certificates from Vault ends; 0 when there is none.", nil, nil)
	secretsStale  = prometheus.NewDesc("testudo_secrets_stale", "Secrets in use whose last check failed.", nil, nil)
)

// Describe implements prometheus.Collector.
func (vaultMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{vaultRequests, vaultLogins, vaultBreaker, vaultExpires, vaultIssued, vaultHeld, vaultNextEnd, secretServes, secretsStale} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (v vaultMetrics) Collect(ch chan<- prometheus.Metric) {
	s, c := v.Client.Stats(), v.Cache.Stats()
	count := func(d *prometheus.Desc, n uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	count(vaultRequests, s.Requests, "all")
	count(vaultRequests, s.Failures, "failed")
	count(vaultRequests, s.RateLimited, "rate-limited")
	count(vaultRequests, s.Forbidden, "forbidden")
	count(vaultRequests, s.Refused, "breaker")
	count(vaultLogins, s.Logins, "ok")
	count(vaultLogins, s.LoginFailures, "failed")
	count(secretServes, c.Hits, "fresh")
	count(secretServes, c.Stale, "stale")
	open := 0.0
	if s.BreakerOpen {
		open = 1
	}
	ch <- prometheus.MustNewConstMetric(vaultBreaker, prometheus.GaugeValue, open)
	expires := 0.0
	if !s.TokenExpires.IsZero() {
		expires = float64(s.TokenExpires.Unix())
	}
	ch <- prometheus.MustNewConstMetric(vaultExpires, prometheus.GaugeValue, expires)
	certs, _ := v.Mounts.Stats()
	count(vaultIssued, certs.Issued, "ok")
	count(vaultIssued, certs.Failures, "failed")
	ch <- prometheus.MustNewConstMetric(vaultHeld, prometheus.GaugeValue, float64(certs.Held), "held")
	ch <- prometheus.MustNewConstMetric(vaultHeld, prometheus.GaugeValue, float64(certs.Overdue), "overdue")
	end := 0.0
	if !certs.NextEnd.IsZero() {
		end = float64(certs.NextEnd.Unix())
	}
	ch <- prometheus.MustNewConstMetric(vaultNextEnd, prometheus.GaugeValue, end)
	ch <- prometheus.MustNewConstMetric(secretsStale, prometheus.GaugeValue, float64(c.StaleNow))
}

// certMetrics shows what became of peers' certificates.
type certMetrics struct{ judge *pki.PKI }

var (
	certsAccepted = prometheus.NewDesc("testudo_certificates_accepted_total", "Certificate chains of peers that were accepted; soft: although a revocation status could not be had.", []string{"status"}, nil)
	certsRefused  = prometheus.NewDesc("testudo_certificates_refused_total", "Certificate chains of peers that were refused, by why.", []string{"why"}, nil)
	certsAnswers  = prometheus.NewDesc("testudo_revocation_answers_total", "CRLs and OCSP answers by where they came from.", []string{"source"}, nil)
	certsKept     = prometheus.NewDesc("testudo_revocation_answers_kept", "CRLs and OCSP answers in memory.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (certMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{certsAccepted, certsRefused, certsAnswers, certsKept} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m certMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.judge.Stats()
	count := func(d *prometheus.Desc, n uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	count(certsAccepted, s.Accepted-s.Soft, "known")
	count(certsAccepted, s.Soft, "soft")
	for _, why := range pki.Whys {
		count(certsRefused, s.Refused[why], string(why))
	}
	count(certsAnswers, s.Fetches-s.Failures, "fetched")
	count(certsAnswers, s.Failures, "failed")
	count(certsAnswers, s.Hits, "memory")
	ch <- prometheus.MustNewConstMetric(certsKept, prometheus.GaugeValue, float64(s.Answers), "ocsp")
	ch <- prometheus.MustNewConstMetric(certsKept, prometheus.GaugeValue, float64(s.CRLs), "crl")
}
