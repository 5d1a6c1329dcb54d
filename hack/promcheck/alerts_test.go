package promcheck

import (
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

// readAlerts reads the rules as Prometheus does when it starts, and as promtool
// check rules does.
func readAlerts(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(alertsFile, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		t.FailNow()
	}
	alerts := map[string]rulefmt.Rule{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			if _, twice := alerts[rule.Alert]; twice || rule.Alert == "" {
				t.Errorf("alert %q is there twice, or has no name", rule.Alert)
			}
			alerts[rule.Alert] = rule
		}
	}
	return alerts
}

var heading = regexp.MustCompile(`(?m)^#+ (.+)$`)

// TestAlertsAskForWhatThereIs: for metrics and labels of the page, and each leads
// to a section that says what to do.
func TestAlertsAskForWhatThereIs(t *testing.T) {
	const runbook = "https://github.com/berth-storage/berth/blob/main/docs/operations.md#"
	metrics := readMetrics(t)
	anchors := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(read(t, operations), -1) {
		anchors[strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(h[1], "`", ""), " ", "-"))] = true
	}
	for name, rule := range readAlerts(t) {
		if err := check(rule.Expr, metrics); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		anchor, ok := strings.CutPrefix(rule.Annotations["runbook_url"], runbook)
		if !ok || anchor != strings.ToLower(name) || !anchors[anchor] {
			t.Errorf("%s: runbook_url %q leads to no section of %s", name, rule.Annotations["runbook_url"], operations)
		}
		if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s says nothing", name)
		}
		switch rule.Labels["severity"] {
		case "critical", "warning", "info":
		default:
			t.Errorf("%s has severity %q", name, rule.Labels["severity"])
		}
	}
}

const build = ` berth_build_info{job="berth",instance="a"} 1x400`

// firing are series that make each alert fire at 4 hours, and the same for which
// it must not. They come in steps of a minute; "of another" is of a process that is
// not Berth's.
var firing = map[string]struct{ bad, good string }{
	"BerthNotRunning": {`leader_election_master_status{name="berth.storage",job="berth",instance="a"} 0x400`, `leader_election_master_status{name="berth.storage",job="berth",instance="a"} 1x400`},
	"BerthClaimsWait": {`berth_claims_waiting_oldest_seconds{driver="d",class="c"} 301x400`, `berth_claims_waiting_oldest_seconds{driver="d",class="c"} 299x400`},
	"BerthProvisioningSlow": {
		buckets("controller_persistentvolumeclaim_provision_duration_seconds", `class="c",job="berth",instance="a"`, "60") + "\n" + build,
		buckets("controller_persistentvolumeclaim_provision_duration_seconds", `class="c",job="berth",instance="a"`, "1") + "\n" + build,
	},
	"BerthBindingSlow": {buckets("berth_bind_duration_seconds", `binder="berth"`, "120"), buckets("berth_bind_duration_seconds", `binder="berth"`, "1")},
	"BerthDeletionFails": {
		`controller_persistentvolume_delete_failed_total{class="c",job="berth",instance="a"} 0+1x400` + "\n" + build,
		`controller_persistentvolume_delete_failed_total{class="c",job="other",instance="b"} 0+1x400` + "\n" + build,
	},
	"BerthExpansionFails": {`berth_expansions_failed_total{class="c"} 0+1x400`, `berth_expansions_failed_total{class="c"} 7x400`},
	"BerthClaimsLost":     {`berth_claims_lost_repaired_total 0+1x400`, `berth_claims_lost_repaired_total 7x400`},
	"BerthQueueGrows": {
		`workqueue_depth{name="claim",job="berth",instance="a"} 0+1x400` + "\n" + build,
		`workqueue_depth{name="claim",job="other",instance="b"} 0+1x400` + "\n" + build,
	},
	"BerthPanics": {
		`controller_runtime_reconcile_panics_total{controller="claim",job="berth",instance="a"} 0+1x400` + "\n" + build,
		`controller_runtime_reconcile_panics_total{controller="claim",job="berth",instance="a"} 0x400` + "\n" + build,
	},
	"BerthVolumesWithoutStorage": {`berth_volumes_without_storage{driver="d"} 1x400`, `berth_volumes_without_storage{driver="d"} 0x400`},
	"BerthOrphanedVolumes":       {`berth_orphaned_volumes{driver="d"} 1x400`, `berth_orphaned_volumes{driver="d"} 0x400`},
	"BerthPoolDirectoryUnusable": {`berth_pool_directory_usable{pool="p",directory="/d"} 0x400`, `berth_pool_directory_usable{pool="p",directory="/d"} 1x400`},
	"BerthPoolFull": {
		`berth_pool_free_bytes{pool="p",directory="/d"} 4x400` + "\n" + `berth_pool_capacity_bytes{pool="p",directory="/d"} 100x400`,
		`berth_pool_free_bytes{pool="p",directory="/d"} 6x400` + "\n" + `berth_pool_capacity_bytes{pool="p",directory="/d"} 100x400`,
	},
	"BerthPoolPromisedOut": {`berth_pool_available_bytes{pool="p",directory="/d"} 0x400`, `berth_pool_available_bytes{pool="p",directory="/d"} 1x400`},
	"BerthVolumeFull": {
		`berth_volume_used_bytes{volume="v"} 96x400` + "\n" + `berth_volume_limit_bytes{volume="v"} 100x400`,
		`berth_volume_used_bytes{volume="v"} 90x400` + "\n" + `berth_volume_limit_bytes{volume="v"} 100x400`,
	},
	"BerthMarkersDamaged":     {`berth_nfs_share_damaged_markers{server="s"} 1x400`, `berth_pool_damaged_markers{pool="p"} 0x400`},
	"BerthTrashStays":         {`berth_pool_trash_entries{pool="p"} 3x400`, `berth_pool_trash_entries{pool="p"} 3x100 0x1 3x300`},
	"BerthAgentsDown":         {`berth_agents{state="silent"} 1x400`, `berth_agents{state="ready"} 1x400`},
	"BerthAgentRefusesOthers": {`berth_agent_refused_connections_total{instance="n"} 0+1x400`, `berth_agent_refused_connections_total{instance="n"} 7x400`},
	"BerthNodeLost":           {`berth_lost_node_volumes{driver="d",state="bound"} 1x400`, `berth_lost_node_volumes{driver="d",state="retained"} 1x400`},
	"BerthPoolShared":         {`berth_shared_pools{driver="d"} 1x400`, `berth_shared_pools{driver="d"} 0x400`},
	"BerthPoolMoved":          {`berth_moved_volumes{driver="d"} 3x400`, `berth_moved_volumes{driver="d"} 0x400`},
	"BerthCapacityBehind": {
		`berth_capacity_objects_goal{driver="d"} 2x400` + "\n" + `berth_capacity_objects_current{driver="d"} 1x400`,
		`berth_capacity_objects_goal{driver="d"} 2x400` + "\n" + `berth_capacity_objects_current{driver="d"} 2x400`,
	},
	"BerthNFSServerDown": {`berth_nfs_server_reachable{server="s"} 0x400`, `berth_nfs_server_reachable{server="s"} 1x400`},
	"BerthNFSShareFull": {
		`berth_nfs_share_free_bytes{server="s"} 4x400` + "\n" + `berth_nfs_share_capacity_bytes{server="s"} 100x400`,
		`berth_nfs_share_free_bytes{server="s"} 6x400` + "\n" + `berth_nfs_share_capacity_bytes{server="s"} 100x400`,
	},
	"BerthCertificateEnds": {`berth_certificate_expiration_timestamp_seconds{certificate="agent"} 300000x400`, `berth_certificate_expiration_timestamp_seconds{certificate="agent"} 900000x400`},
}

// buckets are those of a histogram whose observations are all above one bound and
// below the next.
func buckets(name, labels, above string) string {
	var lines []string
	for _, le := range []string{"1", "5", "60", "120", "600", "+Inf"} {
		step := "0+10x400"
		if le != "+Inf" && len(le) <= len(above) && (len(le) < len(above) || le <= above) {
			step = "0x400"
		}
		lines = append(lines, name+"_bucket{"+labels+`,le="`+le+`"} `+step)
	}
	return strings.Join(lines, "\n")
}

// TestAlertsFire evaluates each alert over series for which it has to fire, and
// over others like them.
func TestAlertsFire(t *testing.T) {
	alerts := readAlerts(t)
	for name := range firing {
		if _, ok := alerts[name]; !ok {
			t.Errorf("there is no alert %s", name)
		}
	}
	for name, rule := range alerts {
		t.Run(name, func(t *testing.T) {
			series, ok := firing[name]
			if !ok {
				t.Fatal("nothing makes it fire")
			}
			fires := evaluate(t, rule.Expr, series.bad)
			if len(fires) == 0 {
				t.Errorf("%s does not fire over\n%s", rule.Expr, series.bad)
			}
			if calm := evaluate(t, rule.Expr, series.good); len(calm) > 0 {
				t.Errorf("%s fires over\n%s\n%s", rule.Expr, series.good, calm)
			}
			// What the texts mention has to be in what the expression yields.
			for _, text := range rule.Annotations {
				for _, label := range usedLabel.FindAllStringSubmatch(text, -1) {
					if err := mentions(rule.Expr, label[1], readMetrics(t)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

func evaluate(t *testing.T, expr, series string) promql.Vector {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n  "+strings.ReplaceAll(strings.TrimSpace(series), "\n", "\n  "))
	engine := promqltest.NewTestEngine(t, false, 0, 100_000)
	// At 6 hours and a half there is enough for what looks back 6 hours.
	query, err := engine.NewInstantQuery(t.Context(), storage, nil, expr, time.Unix(0, 0).Add(6*time.Hour+30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	vector, err := query.Exec(t.Context()).Vector()
	if err != nil {
		t.Fatal(err)
	}
	return append(promql.Vector{}, vector...)
}
