package promcheck

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// dashboard is what of a Grafana dashboard matters here.
type dashboard struct {
	UID        string
	Title      string
	Templating struct {
		List []struct {
			Name, Type, Definition string
		}
	}
	Panels []panel
}

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ H, W, X, Y int }
	Datasource               struct{ Type, UID string }
	Targets                  []struct{ Expr, LegendFormat string }
}

var (
	legendLabel = regexp.MustCompile(`\{\{ ?([a-z_]+) ?\}\}`)
	variable    = regexp.MustCompile(`\$([a-z]+)`)
)

// TestDashboardShowsWhatThereIs reads every query of the dashboard, with Grafana's
// variables filled in.
func TestDashboardShowsWhatThereIs(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &d); err != nil {
		t.Fatal(err)
	}
	metrics := readMetrics(t)
	variables := map[string]bool{}
	for _, v := range d.Templating.List {
		variables[v.Name] = true
		if v.Type != "query" {
			continue
		}
		inner := strings.TrimSuffix(strings.TrimPrefix(v.Definition, "label_values("), ")")
		name, label, _ := strings.Cut(inner, ", ")
		if err := check("count by ("+label+") ("+name+")", metrics); err != nil {
			t.Errorf("variable %s: %v", v.Name, err)
		}
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("panel %q is out of the grid", p.Title)
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q lacks the data source of the variable, a description, or a query", p.Title)
		}
		for _, target := range p.Targets {
			for _, v := range variable.FindAllStringSubmatch(strings.ReplaceAll(target.Expr, "$__", ""), -1) {
				if !variables[v[1]] {
					t.Errorf("panel %q: there is no variable %s", p.Title, v[1])
				}
			}
			query := strings.NewReplacer("$__rate_interval", "5m", "$class", ".*").Replace(target.Expr)
			if err := check(query, metrics); err != nil {
				t.Errorf("panel %q: %v", p.Title, err)
			}
			for _, label := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				if err := mentions(query, label[1], metrics); err != nil {
					t.Errorf("panel %q: %v", p.Title, err)
				}
			}
		}
	}
}

// TestDashboardShowsAllOfBerth: what has a name of Berth's is of use, or should not
// be there.
func TestDashboardShowsAllOfBerth(t *testing.T) {
	shown := read(t, dashboardFile) + read(t, alertsFile)
	// These are for those who look for something.
	apart := map[string]bool{
		"berth_agent_connections": true, "berth_capacity_writes_total": true, "berth_capacity_objects_obsolete": true,
		"berth_lost_nodes": true, "berth_lost_node_volumes_dropped_total": true, "berth_orphaned_volumes_removed_total": true,
		"berth_nfs_share_volumes": true, "berth_pool_volumes": true, "berth_pool_reserved_bytes": true,
	}
	for name, m := range readMetrics(t) {
		if !strings.HasPrefix(name, "berth_") || m.kind == "histogram" && !strings.HasSuffix(name, "_bucket") {
			continue
		}
		if used := strings.Contains(shown, name); used == apart[name] {
			t.Errorf("%s: used %t, want %t", name, used, !apart[name])
		}
	}
}
