// A workload that uses go-spiffe as its users do. It writes what it gets from the Workload API at
// SPIFFE_ENDPOINT_SOCKET as lines of JSON, and follows updates until its standard input ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type line map[string]any

func say(what line) {
	text, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func fail(err error) {
	say(line{"event": "error", "text": err.Error()})
	os.Exit(1)
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	var ids, domains []string
	for _, svid := range update.SVIDs {
		ids = append(ids, svid.ID.String())
	}
	authorities := 0
	for _, bundle := range update.Bundles.Bundles() {
		domains = append(domains, bundle.TrustDomain().Name())
		authorities += len(bundle.X509Authorities())
	}
	sort.Strings(domains)
	leaf := update.DefaultSVID().Certificates[0]
	say(line{
		"event": "x509", "ids": ids, "domains": domains, "authorities": authorities,
		"serial": leaf.SerialNumber.Text(16), "hints": update.SVIDs[0].Hint,
	})
}

func (watcher) OnX509ContextWatchError(err error) {
	say(line{"event": "watch error", "text": err.Error()})
}

func tokens(ctx context.Context, client *workloadapi.Client) {
	svids, err := client.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "backend", ExtraAudiences: []string{"other"}})
	if err != nil {
		fail(err)
	}
	checked, err := client.ValidateJWTSVID(ctx, svids[0].Marshal(), "other")
	if err != nil {
		fail(err)
	}
	_, wrong := client.ValidateJWTSVID(ctx, svids[0].Marshal(), "nobody")
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		fail(err)
	}
	// By go-spiffe's own rules, with the bundle that we were given.
	parsed, err := jwtsvid.ParseAndValidate(svids[0].Marshal(), bundles, []string{"backend"})
	if err != nil {
		fail(err)
	}
	stranger := spiffeid.RequireFromString("spiffe://mesh.test/somebody/else")
	_, refused := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "backend", Subject: stranger})
	say(line{
		"event": "jwt", "count": len(svids), "id": checked.ID.String(), "parsed": parsed.ID.String(),
		"wrong": fmt.Sprint(wrong), "refused": fmt.Sprint(refused),
	})
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		fail(err)
	}
	defer client.Close()
	tokens(ctx, client)
	go func() {
		err := client.WatchX509Context(ctx, watcher{})
		say(line{"event": "watch ended", "text": fmt.Sprint(err)})
	}()
	bufio.NewReader(os.Stdin).ReadString('\n')
}
