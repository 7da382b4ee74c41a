"""The web pages, for people: HTML that is made of what REST answers.

A page is a handler in a file for each subject, a template, and a line in the table `pages.PAGES`. `site` routes the
table: it finds out who is signed in (`sign_in`), refuses changes that another site caused (`guard`), calls the handler
with a `page.Page`, and shows errors. A handler asks REST through `Page`, in this process and as the signed-in user
(`client`): so a page shows and does what REST would, and nothing else. `templates` has what templates may use, `static`
the styles and scripts.

Pages are live: `<main data-live="hosts runs">` names the kinds that a page shows. `live.js` listens at /live, which
tells what kinds have changed, gets the page again and puts its new `<main>` in place. Without scripts, all works but
that.
"""
